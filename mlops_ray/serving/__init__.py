"""Answering predictions over HTTP: the wire, the batches, the replicas, the gateway, the release."""
