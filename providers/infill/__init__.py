"""The infill dialect: llama.cpp's POST /infill, in that server's own format."""
