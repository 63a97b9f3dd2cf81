"""Upscale uploads over HTTP; while one is computed the server answers others.

pip install fastapi uvicorn && uvicorn examples.fastapi_service:app
curl --data-binary @photo.png http://127.0.0.1:8000/upscale > large.png
"""

import io

from fastapi import FastAPI, HTTPException, Request, Response
from PIL import Image, UnidentifiedImageError

import tilefuse

app = FastAPI()
engine = tilefuse.load("espcn-x2")
MAX_BYTES = 20_000_000


@app.post("/upscale")
async def upscale(request: Request) -> Response:
    """Take an image file as the body and return a PNG of twice the size."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"more than {MAX_BYTES} bytes")
    try:
        result = await engine.acall(Image.open(io.BytesIO(body)))
    except (tilefuse.ImageError, UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise HTTPException(415, str(error)) from error
    encoded = io.BytesIO()
    result.save(encoded, "PNG")
    return Response(encoded.getvalue(), media_type="image/png")
