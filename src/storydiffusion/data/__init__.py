"""Training data: shards of captioned videos in WebVid's layout, their index, order, decoding and batches."""
