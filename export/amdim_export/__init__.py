"""From a trained encoder to files that serve it: graph, certificate, model repository."""
