"""tilefuse: trained convolutional image generators at any image size, with tiles that equal the whole image."""
