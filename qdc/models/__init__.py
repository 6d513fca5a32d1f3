"""Own implementations of the model families, traceable and under the published key names."""
