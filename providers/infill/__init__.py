"""The infill dialect: llama.cpp's fill-in-the-middle endpoint."""
