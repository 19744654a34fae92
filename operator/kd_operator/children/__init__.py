"""One builder a child kind: what the API server is asked to create for a job. Pure: values in, manifests out."""
