"""Trials of a data plane under load: what each request was answered, and what the log of predictions says afterwards."""
