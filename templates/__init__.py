"""The pages and their assets, carried by the wheel as the package `sse_broker.templates`; holds no code."""
