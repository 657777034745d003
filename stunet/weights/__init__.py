"""What enters and leaves as weights: model folders, inflation, parameter trees."""
