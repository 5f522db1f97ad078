"""How long names and lives may be, as the API's description says it and its checks keep it. Pure."""

MAX_NAME_CHARS = 256
MAX_EVENT_CHARS = 256
# A hundred years.
MAX_TTL_SECONDS = 3_155_760_000
