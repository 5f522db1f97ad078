"""sse-broker: Server-Sent Events for millions of browsers and apps, on one process or many."""
