"""What people look at of benchmark reports: one page, a comment for a pull request, a comparison with a baseline."""
