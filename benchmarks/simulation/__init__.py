"""The control loop against a simulated cluster: days of it in seconds, with thousands of slots."""
