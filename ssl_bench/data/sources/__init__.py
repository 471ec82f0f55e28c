"""Where images come from: folders, Parquet files, torchvision."""
