"""The example configuration and the unit file, carried by the wheel as the package `sse_broker.etc`; holds no code."""
