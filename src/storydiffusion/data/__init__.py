"""What is learned from: shards of captioned videos in WebVid's layout, their order, decoding and batches."""
