"""Will a flight out of New York be late? A training pipeline to learn from and to replace by your own."""
