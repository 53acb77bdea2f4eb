"""The hot path of a request: nothing here awaits anything but sockets."""
