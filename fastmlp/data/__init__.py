"""From files and arrays to checked data sets, their splits and their scaling."""
