"""What people look at after a run: its page, and tables over runs."""
