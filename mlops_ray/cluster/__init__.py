"""Running the parts on Ray: a cluster of our own, jobs, deployment, and the stages of `run`."""
