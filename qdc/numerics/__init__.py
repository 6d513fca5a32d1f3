"""Pure functions on tensors: the arithmetic that passes and backends share."""
