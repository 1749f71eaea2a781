#!/bin/sh
# `uv` while the image is built: BentoML's Dockerfile calls it twice, and 60 MB of it would stay. It takes the real one
# from a mounted /build/uv or from the package index, and leaves nothing behind but what was installed.
set -eu
real=/build/uv
if [ ! -x "$real" ]; then
    python3 -m pip install --quiet --no-cache-dir --root-user-action ignore --target /tmp/uv uv
    real=/tmp/uv/bin/uv
fi
"$real" --no-cache "$@"
case "$*" in *"pip install"*)
    # for downloads from a model hub: nothing is downloaded there
    "$real" --no-cache pip uninstall --quiet hf-xet
    packages=$(echo "$VIRTUAL_ENV"/lib/python3*/site-packages)
    for part in numpy/distutils numpy/f2py onnxruntime/quantization onnxruntime/tools onnxruntime/transformers; do
        rm -rf "${packages:?}/$part"
    done
    find "$packages" -depth -type d -name tests -exec rm -rf {} +
    find "$packages" -name '*.pyi' -delete
    "$VIRTUAL_ENV/bin/python" "$BENTO_PATH/src/serve/sbom.py" "$BENTO_PATH/sbom.cdx.json"
    rm /usr/local/bin/uv
    ;;
esac
rm -rf /tmp/uv
