"""Train the demo model; run as 'python -m tools.train_demo.train'."""
