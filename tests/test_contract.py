"""Each promise to the outside (docs/contract.md), row by row, and the tests that show it. A row is a line; under it stand its tests, indented,
as `module::test`. It fails for a row without a test and for a test that is not there.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from sse_broker.config import schema

INDEX = """
# 1. Words

uid: a person or account; may be connected from many devices at once
    event_stream::test_a_frame_goes_to_each_device_that_it_is_for_and_to_no_other
    web_info::test_a_user_with_several_devices
device: named by the client, any non-empty text up to 256 characters
    web_events::test_a_device_name_may_have_256_characters_of_any_kind
    web_events::test_a_device_name_that_is_not_good_is_refused
    wire::test_a_device_is_named_by_any_text
device_id: the lower-case MD5 hex of the UTF-8 name; xuyd gives c7ea097beaf447e97f41af1c4651983c
    web_info::test_a_device_that_is_online
    presence::test_a_device_id_is_the_md5_of_the_name
Device names are unique across the whole cluster; a device has at most one live stream
    event_stream::test_a_newer_stream_on_another_instance_replaces_the_older
    backend_cluster::test_a_device_that_comes_on_another_instance_ends_on_the_first
instance: one running broker process; instance_address is ip:port
    web_info::test_an_instance_by_its_address_with_and_without_port
    server::test_it_serves_an_ipv6_address
cluster: all instances on the same Redis; it forms and heals by itself
    node_faults::test_a_broker_that_was_frozen_and_cleared_puts_its_presence_right_and_its_streams_catch_up
    faults::test_a_redis_that_is_flushed_under_load_is_filled_again
    web_info::test_each_instance_knows_the_whole_cluster
    backend_cluster::test_an_instance_that_was_cleared_and_lives_joins_its_devices_again_and_says_so
    backend_cluster::test_a_device_that_the_instance_has_and_redis_lost_is_put_back
frame: one block of id, optional event, data
    frame::test_a_frame_is_id_event_and_data_and_a_blank_line
    frame::test_a_frame_without_an_event_name_has_no_event_line
extrude: a newer stream of the same device replaces the older one
    event_stream::test_a_newer_stream_of_the_device_replaces_the_older

# 2. HTTP API

/token, /send, /info, /kick take GET with a query
    web::test_a_token_can_be_asked_for
    web::test_a_frame_can_be_sent_to_users_and_devices
    web::test_users_and_devices_can_be_kicked
    web::test_information_can_be_asked_for
/token, /send, /info, /kick take POST with JSON, an urlencoded form, a multipart form
    web::test_a_token_can_be_asked_for
    web::test_a_frame_can_be_sent_to_users_and_devices
    web::test_users_and_devices_can_be_kicked
    web::test_information_can_be_asked_for
    web_multipart::test_values_are_read_exactly_and_in_order
Every answer is JSON: code 1, msg success, micro the handling time in µs, result
    web::test_an_answer_has_code_msg_micro_and_result
    answers::test_an_answer_is_json_with_code_message_time_and_result
On failure code is the HTTP status, msg one sentence that names the parameter, result empty text
    web::test_a_failure_has_the_status_as_code_and_an_empty_result
    web::test_a_bad_parameter_is_refused_and_named
400 for a bad parameter
    web::test_a_bad_parameter_is_refused_and_named
    bad_input::test_a_bad_body_is_refused
401 without a good key or token
    web_access::test_with_keys_each_endpoint_needs_one
    web_events::test_a_token_that_is_not_good_is_refused
403 for good credentials that are not for this
    gate::test_a_key_opens_no_endpoint_beyond_its_scopes
    web_gate::test_a_named_key_opens_its_endpoints_and_gets_403_at_others
405 for another method, with those allowed
    web::test_another_method_is_refused_with_those_allowed
413 for an oversize body
    web::test_an_oversize_body_is_refused
    bad_input::test_a_long_body_is_refused_before_it_comes
415 for another content type
    web::test_another_content_type_is_refused
    bad_input::test_a_body_of_another_type_is_refused
429 for too many
    gate::test_who_tries_too_many_wrong_keys_has_to_wait
    web_gate::test_wrong_keys_are_slowed_with_retry_after
    web_gate::test_streams_are_opened_at_a_rate
503 for transient trouble
    web::test_without_redis_what_needs_it_is_unavailable_for_now
    web_events::test_a_full_instance_says_when_to_come_again
Unknown parameters are ignored
    web::test_unknown_parameters_are_ignored
A list is text separated by commas; spaces around items and empty items are dropped
    web::test_a_frame_can_be_sent_to_users_and_devices
    web_params::test_names_are_text_with_commas_or_an_array
A list may be, in JSON, an array of strings
    web::test_a_list_may_be_a_json_array
Numbers are accepted where text is asked for
    web::test_numbers_are_taken_as_text
    web_params::test_a_text_is_kept_and_a_number_is_text
/token: uid required, device binds the token, ttl in seconds, default jwt.expire; result the JWT
    web::test_a_token_can_be_asked_for
    web::test_a_bad_parameter_is_refused_and_named
/send: data required, event, uid list, device list; result how many distinct online devices, cluster-wide
    web::test_a_frame_can_be_sent_to_users_and_devices
    backend::test_a_device_that_is_named_in_several_ways_counts_and_hears_once
    backend_cluster::test_counts_are_cluster_wide_and_each_instance_hears_for_its_own_devices
/send: neither list means everyone
    web::test_a_frame_can_be_sent_to_users_and_devices
    web_params::test_a_list_that_names_nobody_does_not_mean_everyone
/info: one of device, uid, ip (alias address), or none for the cluster
    web_info::test_a_device_that_is_online
    web_info::test_a_user_with_several_devices
    web_info::test_an_instance_by_its_address_with_and_without_port
    web_info::test_the_cluster
    web::test_a_bad_parameter_is_refused_and_named
/kick: uid list, device list, at least one; data handed to the device; result how many devices were kicked
    web::test_users_and_devices_can_be_kicked
    event_stream::test_a_kick_ends_the_stream_with_its_data
    event_stream::test_a_kick_reaches_only_who_is_meant_and_only_those_online
data in a JSON body may be any JSON value; what is not text is sent as its compact JSON
    web::test_data_that_is_no_text_is_sent_as_compact_json
    wire::test_json_that_is_no_text_arrives_as_compact_json
Tokens: HS256, claims uid, device_name only when bound, exp, iat
    web::test_a_token_can_be_asked_for
    tokens::test_a_minted_token_holds_the_claims_of_the_contract_and_no_others
    tokens::test_no_other_algorithm_is_believed
A back end that shares the secret may mint its own
    tokens::test_a_back_end_that_shares_the_secret_may_mint
    web_events::test_a_bound_token_opens_its_device_alone
/info of a user: online, uid, login_time, last_touch_time, devices with eight fields each
    web_info::test_a_user_with_several_devices
    web_info::test_a_user_who_is_not_online
    answers::test_a_user_came_with_the_first_device_and_was_touched_with_the_last
/info of a device: online and its fields; offline false, the id and the name, the rest empty or 0
    web_info::test_a_device_that_is_online
    web_info::test_a_device_that_is_not_online
    web_info::test_the_last_frame_that_a_device_has_is_known
/info of an instance: online, version, address, start_time, device_count
    web_info::test_an_instance_by_its_address_with_and_without_port
    web_info::test_an_instance_that_is_not_there
/info of the cluster: instance_count, user_count, device_count, instances
    web_info::test_the_cluster
    web_info::test_each_instance_knows_the_whole_cluster
Times read 2024-09-12 09:57:59, local time of the broker
    web_info::test_a_device_that_is_online
    clock::test_a_time_reads_in_the_zone_of_the_broker

# 3. Event stream: GET /events

The token: X-SSE-TOKEN, Authorization: Bearer, or token in the query; required
    web_events::test_token_and_device_come_in_each_way
    web_events::test_headers_win_over_the_query
    web_events::test_a_token_that_is_not_good_is_refused
The device: X-SSE-DEVICE or device in the query; required
    web_events::test_token_and_device_come_in_each_way
    web_events::test_a_device_name_that_is_not_good_is_refused
The device must equal the token's when the token is bound
    web_events::test_a_bound_token_opens_its_device_alone
The last id: Last-Event-ID wins over X-SSE-ID, which wins over the query
    web_events::test_the_standard_header_wins_over_ours_and_that_over_the_query
    web_events::test_a_last_id_that_is_no_id_is_refused
200 with Content-Type text/event-stream, Cache-Control: no-cache, no-transform, X-Accel-Buffering: no
    web_events::test_the_answer_has_the_headers_of_an_event_stream
    wire::test_the_head_and_the_first_bytes_of_a_stream
Works over HTTP/1.1 and HTTP/1.0
    web_events::test_http_1_0_gets_a_stream_that_is_not_chunked
    wire::test_every_reader_reads_what_was_sent
Bad or expired token, wrong device: 401
    web_events::test_a_token_that_is_not_good_is_refused
    web_events::test_a_bound_token_opens_its_device_alone
Transient trouble gets 503 with Retry-After only where the stream can not be opened at all
    web_events::test_a_draining_instance_opens_no_stream
    web_events::test_a_full_instance_says_when_to_come_again
    web::test_without_redis_what_needs_it_is_unavailable_for_now
First sys_connected with the client's address and a retry line
    event_stream::test_the_first_event_is_the_clients_address_with_a_retry
With a last id: every retained frame for the device, its user or everyone, with a greater id, oldest first, each once
    event_stream::test_frames_that_were_missed_come_first_oldest_first_each_once
    event_stream::test_a_long_replay_is_complete
    backend_replay::test_the_three_logs_are_replayed_as_one_in_order_and_each_frame_once
If frames were dropped from retention: first sys_replay_gap with the requested and the oldest id
    event_stream::test_a_loss_is_never_silent
    event_stream::test_an_id_older_than_retention_is_a_gap
    event_stream::test_a_full_log_without_a_loss_is_no_gap
    backend_replay::test_a_gap_is_told_exactly_when_a_frame_fell_out_of_a_log
Live frames; none is lost or doubled between replay and live
    event_stream::test_nothing_is_lost_or_doubled_between_replay_and_live
    backend_replay::test_nothing_falls_between_replay_and_bus
    recorder::test_three_brokers_on_redis_lose_and_double_nothing_while_devices_come_and_go
    recorder::test_an_embedded_broker_loses_and_doubles_nothing_while_devices_come_and_go
Without a last id a new stream starts with live frames
    event_stream::test_without_a_last_id_a_stream_starts_with_live_frames
A frame: id line, event line if one was given, one data line per line of the data (CRLF, CR and LF), blank line
    frame::test_a_frame_with_cr_lf_is_one_line_each
    wire::test_every_reader_reads_what_was_sent
    wire::test_any_text_reaches_every_reader
event with CR, LF or NUL is refused with 400, so is one beginning with sys_
    web::test_a_bad_parameter_is_refused_and_named
    wire::test_an_event_name_that_would_forge_is_refused
Ids are integers below 2^53, strictly increasing over the whole cluster
    event_stream::test_ids_rise_over_every_way_of_sending
    backend_cluster::test_every_instance_has_one_and_the_same_order
    backend::test_ids_of_concurrent_senders_are_all_different_and_rise_for_each
Ids increase across restarts of brokers and Redis
    backend::test_ids_rise_over_a_restart_of_the_broker
    backend::test_ids_rise_when_the_clock_goes_back
    backend_cluster::test_ids_rise_over_a_flush_and_a_clock_that_is_behind
    faults::test_a_redis_that_comes_back_empty_is_filled_again_and_the_loss_is_told
A client never sees an id twice or out of order on one stream
    delivery::test_ids_rise_on_every_stream_however_frames_and_broadcasts_are_mixed
    recorder::test_three_brokers_on_redis_lose_and_double_nothing_while_devices_come_and_go
A comment line every sse.heartbeat_interval seconds of silence
    event_stream::test_silence_is_broken_by_heartbeats_alone
    heartbeats::test_a_heartbeat_follows_the_last_after_a_whole_interval
End sys_kick_offline with the kick's data, retry about a day
    event_stream::test_a_kick_ends_the_stream_with_its_data
    wire::test_the_data_of_a_kick_forges_nothing
End sys_extrude_offline with the new client's address, retry about a day
    event_stream::test_a_newer_stream_of_the_device_replaces_the_older
    demo_page::test_two_tabs_with_one_device_do_not_fight
End sys_instance_close with the instance address, a random retry of 1 to 5 s
    event_stream::test_an_instance_that_closes_says_its_address
    server::test_sigterm_ends_each_stream_with_a_word
A kicked device's token is refused until it expires, on every instance
    event_stream::test_a_kicked_devices_token_is_refused
    event_stream::test_a_kicked_devices_token_is_refused_on_every_instance
    backend_presence::test_a_token_is_remembered_no_longer_than_it_is_good
Frames sent while a device is away are replayed when it returns with its last id, on any instance
    event_stream::test_a_return_on_another_instance_is_replayed
    server::test_streams_go_on_over_a_restart
A device that returns under another user gets nothing kept under the former one
    event_stream::test_a_device_under_another_user_gets_nothing_of_the_former
    backend_known::test_a_device_under_another_user_gets_nothing_that_was_kept_under_the_former

# 4. Presence messages

sse_topic_device_online when a device connected (connected)
    presence_messages::test_coming_and_going_is_announced_once
sse_topic_device_offline with the reason disconnect
    presence_messages::test_coming_and_going_is_announced_once
sse_topic_device_offline with the reason extrude_offline
    presence_messages::test_extrusion_of_the_only_device_tells_no_user_message
sse_topic_device_offline with the reason kick_offline
    presence_messages::test_a_kick_is_announced_with_its_data
sse_topic_device_offline with the reason instance_close
    presence_messages::test_an_instance_that_closes_tells_of_each_device
sse_topic_device_offline with the reason instance_clear
    backend_cluster::test_an_instance_that_dies_without_a_word_is_cleared_once_by_the_others
sse_topic_device_offline with the reason heartbeat_fail
    presence_messages::test_a_client_that_does_not_read_is_announced_as_failed
sse_topic_user_online when a user's first device connected (device_online)
    presence_messages::test_a_user_is_online_from_the_first_device_to_the_last
sse_topic_user_offline when a user's last device went, with its reason
    presence_messages::test_a_user_is_online_from_the_first_device_to_the_last
JSON of six fields; payload as the reason has it
    presence_messages::test_coming_and_going_is_announced_once
    backend_presence::test_a_message_has_the_fields_of_the_contract
    backend_presence::test_a_going_is_announced_with_its_reason_and_payload
Each change is announced once, cluster-wide, in order per device
    presence_messages::test_many_changes_of_one_device_are_told_in_order
    backend_presence::test_each_device_s_changes_are_announced_in_order_however_many_come_at_once
    recorder::test_three_brokers_on_redis_lose_and_double_nothing_while_devices_come_and_go
Online follows registration, offline follows removal
    presence_messages::test_online_follows_registration_and_offline_follows_removal
    backend_presence::test_online_is_announced_after_it_is_so_and_offline_after_it_is_not
Extrusion of a user's only device: device offline, device online, no user message
    presence_messages::test_extrusion_of_the_only_device_tells_no_user_message
An instance that dies without a word is cleared by the others within three heartbeat intervals
    node_faults::test_devices_of_a_killed_broker_go_on_elsewhere_and_who_does_not_come_back_is_cleared
    backend_cluster::test_an_instance_that_dies_without_a_word_is_cleared_once_by_the_others
Without Redis the same messages go to whoever subscribes in other ways
    memory::test_every_listener_hears_every_message_in_order
    backend_presence::test_a_message_has_the_fields_of_the_contract

# 5. Configuration

TOML, every key optional, with the defaults of the table
    config::test_the_defaults_are_those_of_the_contract
    config::test_the_example_file_holds_every_key_in_order_with_its_default
server.host, server.port
    cli::test_options_win_over_the_file
    listener::test_the_address_of_an_instance_is_where_it_listens
server.workers
    workers::test_connections_spread_and_info_counts_them_together
    workers::test_sigterm_drains_them_all
    config_checks::test_impossible_values_are_refused
server.access_log_path, error_log_path, broker_log_path: empty for the standard streams
    logs::test_each_log_has_its_file
    logs::test_without_paths_the_standard_streams_are_used_and_an_error_shows_once
server.trusted_proxies: X-Forwarded-For and X-Real-IP are believed only from these
    web_access::test_a_forwarded_address_of_a_trusted_proxy_is_believed
    web_access::test_a_forwarded_address_is_not_believed_from_anybody_else
    web_access::test_a_forwarded_address_is_not_believed_by_itself
server.cors_origins
    web_access::test_a_listed_origin_may_ask_and_read
    web_access::test_another_origin_is_told_nothing
    web_access::test_without_origins_no_page_elsewhere_may_read
server.drain_seconds
    server::test_sigterm_does_not_wait_for_a_stalled_client_beyond_the_drain
server.max_body_bytes
    web::test_an_oversize_body_is_refused
    bad_input::test_a_body_at_the_bound_is_taken
server.max_connections
    web_events::test_a_full_instance_says_when_to_come_again
    file_limits::test_no_more_streams_are_taken_than_files_may_be_open
server.tls_cert, server.tls_key
    server::test_streams_and_sends_work_over_tls
    server::test_a_certificate_that_can_not_be_used_stops_the_start
api.keys
    web_access::test_with_keys_each_endpoint_needs_one
api.allow_anonymous
    config::test_a_reachable_host_needs_api_keys_or_the_word_that_it_does_not
jwt.secret, jwt.previous_secrets
    web_events::test_a_token_of_a_former_secret_is_good
    tokens::test_former_secrets_are_accepted_but_not_used
jwt.expire
    web::test_a_token_can_be_asked_for
redis.addrs, one: standalone; username, password, db, pool_size, tls
    redis_kinds::test_one_address_is_a_standalone_redis
    redis_kinds::test_a_wrong_password_stops_the_start
redis.sentinel: then addrs are Sentinels
    redis_kinds::test_with_a_master_name_the_addresses_are_sentinels
redis.addrs, several: Redis Cluster
    redis_kinds::test_several_addresses_are_a_redis_cluster
sse.heartbeat_interval
    event_stream::test_silence_is_broken_by_heartbeats_alone
sse.device_frame_cache_size
    event_stream::test_a_loss_is_never_silent
sse.device_frame_cache_expire
    backend_replay::test_an_id_older_than_the_retention_time_is_a_gap
sse.max_buffer_bytes
    event_stream::test_a_client_that_does_not_read_is_closed_at_the_bound
Environment variables override
    config_source::test_the_environment_overrides_the_file_for_every_key
-c/--config, else config.toml beside a bundled executable, else /etc/sse-broker/config.toml, else the defaults
    config::test_the_system_file_is_read_when_no_file_is_named
    config::test_the_file_beside_a_bundled_executable_wins_over_the_system_file
    cli::test_it_runs_without_any_configuration
Unknown tables or keys, wrong types and impossible values stop the start with one line that names file, table and key
    config_source::test_unknown_tables_and_keys_are_refused_with_the_nearest_name
    config_source::test_wrong_types_are_refused
    config_checks::test_impossible_values_are_refused
    cli::test_a_bad_file_is_one_line_and_code_2
jwt.secret unset on the embedded default gives a random secret for this run and says so
    cli::test_it_runs_without_any_configuration
    config::test_random_secrets_are_strong_and_made_only_where_none_is_set
With Redis, or on a non-loopback host, a weak secret stops the start
    config::test_a_weak_secret_stops_the_start_with_redis_and_on_a_reachable_host
On a non-loopback host api.keys must be set, or allow_anonymous = true written
    config::test_a_reachable_host_needs_api_keys_or_the_word_that_it_does_not
With keys, the four endpoints need Authorization: Bearer or X-SSE-API-Key
    web_access::test_with_keys_each_endpoint_needs_one

# 6. Programs

sse-broker and python -m sse_broker: --config, --host, --port, --version, --help
    cli::test_the_version
    cli::test_the_help_names_every_option
    cli::test_options_win_over_the_file
Exit 0 after SIGTERM or SIGINT
    cli::test_a_signal_ends_it_with_code_0
Exit 2 for bad configuration
    cli::test_a_bad_file_is_one_line_and_code_2
Exit 1 for a failure to start: port taken, Redis out of reach
    cli::test_a_taken_port_is_one_line_and_code_1
    cli::test_redis_out_of_reach_is_one_line_and_code_1
With no configuration it runs on the embedded backend
    cli::test_it_runs_without_any_configuration
/ is the API page
    pages::test_a_page_is_html_for_get_and_head
    pages::test_the_api_page_names_every_endpoint_parameter_event_and_channel
/demo and /static/demo.html: token, connect, frames and system events, send, kick, info, from the page
    demo_page::test_the_whole_path_can_be_clicked_through
    pages::test_a_page_is_html_for_get_and_head
Nothing is loaded from elsewhere
    pages::test_a_page_loads_only_what_this_broker_serves
    pages::test_scripts_and_styles_load_nothing_from_elsewhere

# 7. Bad input and faults

Malformed JSON, wrong type, missing parameter, over-long device or uid: 400; the process and every stream live on
    bad_input::test_a_bad_body_is_refused
    bad_input::test_the_query_is_as_strict_as_a_body
    bad_http::test_damaged_requests_are_answered_or_closed
Oversize body: 413; the process and every stream live on
    bad_input::test_a_long_body_is_refused_before_it_comes
    bad_input::test_a_long_body_without_a_length_is_refused_on_the_way
    bad_input::test_a_body_that_inflates_is_refused_by_what_it_becomes
What is no HTTP is refused or closed; the process and every stream live on
    bad_http::test_what_is_no_http_is_refused_and_closed
    bad_http::test_broken_chunks_are_refused
    bad_http::test_a_client_may_leave_at_each_point_of_a_request
Data with newlines, NUL, lone surrogates, 1 MiB text, emoji: delivered exactly, or refused with 400
    wire::test_every_reader_reads_what_was_sent
    wire::test_a_mebibyte_arrives_whole
    wire::test_a_lone_surrogate_is_refused_and_the_stream_lives_on
    web::test_text_stays_as_it_is
A client that does not read: closed at max_buffer_bytes (heartbeat_fail); nobody else waits for it; it resumes by last id
    lost_clients::test_a_client_that_does_not_read_is_dropped_and_resumes
    client_faults::test_a_client_that_never_reads_is_closed_and_keeps_nobody_waiting
    event_stream::test_a_client_that_does_not_read_is_closed_at_the_bound
    client_faults::test_a_replay_of_more_than_the_bound_to_a_slow_reader_completes
    presence_messages::test_a_client_that_does_not_read_is_announced_as_failed
    delivery::test_a_client_that_does_not_read_is_dropped_and_nobody_else_waits
A client that vanishes: noticed within three heartbeat intervals
    lost_clients::test_a_client_that_vanishes_is_noticed_within_three_heartbeats
    client_faults::test_a_client_that_vanishes_is_noticed_within_three_heartbeats
Redis away: open streams stay open; /send says 503
    faults::test_a_redis_that_freezes_for_15_s_is_noticed_and_goes_on
    web::test_without_redis_what_needs_it_is_unavailable_for_now
Redis returns: streams, presence and sends go on without a restart, and frames accepted before are delivered
    faults::test_a_redis_that_restarts_with_its_data_costs_no_frame_and_no_stream
    faults::test_a_redis_that_is_killed_and_comes_back_later_costs_no_frame
    faults::test_connections_to_redis_that_are_cut_again_and_again_cost_nothing
An instance killed: its devices reconnect elsewhere with their last id and miss nothing
    node_faults::test_devices_of_a_killed_broker_go_on_elsewhere_and_who_does_not_come_back_is_cleared
SIGTERM: no new streams, sys_instance_close to each, presence removed, exit within drain_seconds
    server::test_sigterm_ends_each_stream_with_a_word
    server::test_sigterm_does_not_wait_for_a_stalled_client_beyond_the_drain
    server::test_sigterm_while_redis_is_away_ends_within_the_drain
    node_faults::test_a_broker_that_is_asked_to_end_sends_its_devices_elsewhere_and_says_so
"""


def rows() -> dict[str, list[str]]:
    """Return the tests of each row, by its text with the section before it."""
    found: dict[str, list[str]] = {}
    section = row = ""
    for line in INDEX.splitlines():
        if line.startswith("# "):
            section = line.removeprefix("# ")
        elif line.startswith("    "):
            found[row].append(line.strip())
        elif line:
            row = f"{section.partition(' ')[0]} {line}"
            assert row not in found, f"twice: {row}"
            found[row] = []
    return found


@cache
def names_in(module: str) -> frozenset[str]:
    """Return the names of a module's tests, without running any."""
    path = Path(__file__).with_name(f"test_{module}.py")
    if not path.exists():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(
        node.name
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, functions) and node.name.startswith("test_")
    )


@pytest.mark.parametrize("row", rows())
def test_each_row_of_the_contract_has_tests_that_exist(row: str) -> None:
    tests = rows()[row]
    assert tests, "no test shows it"
    for test in tests:
        module, _, name = test.partition("::")
        assert name in names_in(module), f"there is no {test}"


DOCUMENT = (Path(__file__).parents[1] / "docs" / "contract.md").read_text("utf-8")


def test_the_document_has_the_sections_that_modules_and_tests_cite() -> None:
    titles = [line.removeprefix("# ").partition(":")[0] for line in INDEX.splitlines() if line.startswith("# ")]
    assert re.findall(r"^## (.+)$", DOCUMENT, re.M) == titles


def test_the_document_names_each_key_of_the_configuration_once() -> None:
    named = {}
    for table, text in re.findall(r"^\| `\[(\w+)\]` \| (.+) \|$", DOCUMENT, re.M):
        words = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", text))
        named[table] = words
    assert named == {table: list(keys) for table, keys in schema().items()}


def test_every_section_is_there() -> None:
    assert {row[:2] for row in rows()} == {f"{number}." for number in range(1, 8)}
