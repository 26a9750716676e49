"""What the worker does for each kind of job: one module, one function a kind."""
