"""The gateway: OpenAI's HTTP API, health, metrics and a web page in front of the served model."""
