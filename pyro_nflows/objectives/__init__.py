"""What training maximises: draws with their weights, and estimators of its gradient."""
