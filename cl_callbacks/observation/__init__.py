"""What is seen of a training: figures of scores, importance, plasticity and drift."""
