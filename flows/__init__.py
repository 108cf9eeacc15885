"""The long and scheduled work, as Prefect flows. Thin: the decisions are the control plane's."""
