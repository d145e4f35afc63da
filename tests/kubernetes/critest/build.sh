#!/bin/bash
# Builds critest, the upstream tests of a container runtime, from its Go module; prints where it is. A cache of its own beside
# the lab's programs, which do not need it: ${BULKHEAD_KUBERNETES_CACHE:-${XDG_CACHE_HOME:-~/.cache}/bulkhead/kubernetes}.
set -euo pipefail

VERSION=1.34.0

cache=${BULKHEAD_KUBERNETES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead/kubernetes}
out=$cache/critest-$VERSION/critest
if [ ! -x "$out" ]; then
    command -v go >/dev/null || { echo "build.sh: Go is missing: install 1.24 or newer from https://go.dev/dl" >&2; exit 1; }
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    printf 'module bulkhead.dev/critest\n\ngo 1.24.0\n\nrequire sigs.k8s.io/cri-tools v%s\n' "$VERSION" >go.mod
    go mod download sigs.k8s.io/cri-tools
    source=$(go list -mod=mod -m -f '{{.Dir}}' sigs.k8s.io/cri-tools)
    # A module's replace lines hold only in the module itself.
    sed -n '/^replace/,/^)/p' "$source/go.mod" >>go.mod
    cp "$source/go.sum" .
    printf 'package critest\n\nimport _ "sigs.k8s.io/cri-tools/pkg/validate"\n' >critest.go
    go mod tidy -e >/dev/null 2>&1 || true
    mkdir -p "$(dirname "$out")"
    CGO_ENABLED=0 go test -mod=mod -c -ldflags '-s -w' -o "$out.partial" sigs.k8s.io/cri-tools/cmd/critest
    mv "$out.partial" "$out"
fi
echo "$out"
