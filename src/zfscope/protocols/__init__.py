"""The protocols of Sec. 5: transfer, features of each layer, linear classifiers, overlap of data sets."""
