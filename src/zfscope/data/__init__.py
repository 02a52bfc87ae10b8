"""Data: labelled images read one at a time, the data sets that hold them, and what turns them into batches."""
