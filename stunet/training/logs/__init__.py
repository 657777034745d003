"""What a training run logs: metrics, telemetry, TensorBoard, traces."""
