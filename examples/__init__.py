"""Examples: training pipelines that hand their models to Switchyard through an MLflow registry."""
