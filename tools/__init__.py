"""Programs that work on the book, not in it; `resnet_lib` and the chapters never import them."""
