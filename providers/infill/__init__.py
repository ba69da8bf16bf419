"""The infill dialect: POST /infill of llama.cpp, in llama.cpp's own format."""
