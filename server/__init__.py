"""The service: REST API, jobs, worker and command line."""
