"""The gateway's HTTP API without the inference routes: health, models, operator API, metrics and errors."""
