"""What is compared: each module is a process that runs rounds of workloads on request."""
