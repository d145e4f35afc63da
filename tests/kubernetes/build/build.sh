#!/bin/bash
# Builds what the lab on Kubernetes runs, from Go modules: Kubernetes, its upstream tests, containerd, CoreDNS, Helm.
#
#   build.sh           builds unless it is built; prints where it is
#   build.sh --where   prints where it is or would be
#
# Once, into a cache outside the tree: ${BULKHEAD_KUBERNETES_CACHE:-${XDG_CACHE_HOME:-~/.cache}/bulkhead/kubernetes}. It takes
# about eight minutes on two cores, half a minute when Go's own cache is warm.
set -euo pipefail

KUBERNETES=1.34.4
CONTAINERD=2.1.5
COREDNS=1.12.4
HELM=3.19.5

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BULKHEAD_KUBERNETES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead/kubernetes}
# Whatever changes what is built is in these files, the versions included.
hash=$(cd "$here" && find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-12)
out=$cache/$KUBERNETES-$hash

if [ "${1:-}" = --where ]; then
    echo "$out"
    exit
fi
if [ $# -gt 0 ]; then
    echo "build.sh: what is $1? It takes --where or nothing" >&2
    exit 2
fi

check_go() {
    local have
    if ! command -v go >/dev/null; then
        echo "build.sh: Go is missing: install 1.24 or newer from https://go.dev/dl (Debian 12's own is too old)" >&2
        exit 1
    fi
    have=$(go env GOVERSION)
    if [ "$(printf '%s\n' go1.24 "$have" | sort -V | head -1)" != go1.24 ]; then
        echo "build.sh: $(command -v go) is $have; Kubernetes $KUBERNETES needs 1.24 or newer (https://go.dev/dl)." >&2
        echo "          Go 1.19, which Debian 12 has, cannot fetch a newer one by itself." >&2
        exit 1
    fi
}

# A module around others: "go install" refuses modules with replace lines, a module that requires them does not.
wrap() { # NAME MODULE VERSION
    rm -rf "$work/$1"
    cp -r "$here/$1" "$work/$1"
    cd "$work/$1"
    printf 'module bulkhead.dev/lab\n\ngo 1.24.0\n\nrequire %s %s\n' "$2" "$3" >go.mod
}

build() { # PACKAGE...
    CGO_ENABLED=0 go build -mod=mod -buildvcs=false -ldflags "-s -w ${LD:-}" -o "$partial/" "$@"
}

build_kubernetes() {
    local module=k8s.io/kubernetes source staging version=k8s.io/component-base/version
    wrap kubernetes $module v$KUBERNETES
    go mod download $module
    source=$(go list -mod=mod -m -f '{{.Dir}}' $module)
    # Its own go.mod asks for its parts at v0.0.0, which exist as v0.<minor>.<patch>.
    for staging in $(grep -oE 'k8s.io/[a-z0-9-]+ v0\.0\.0($| )' "$source/go.mod" | cut -d' ' -f1 | sort -u); do
        echo "replace $staging => $staging v0.${KUBERNETES#1.}" >>go.mod
    done
    cp "$source/go.sum" .
    go mod tidy -e >/dev/null 2>&1 || true
    LD="-X $version.gitVersion=v$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=$(cut -d. -f2 <<<$KUBERNETES)" \
        build $module/cmd/{kubelet,kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy,kubectl} \
        $module/test/images/agnhost
    CGO_ENABLED=0 go test -mod=mod -c -ldflags "-s -w" -o "$partial/e2e.test" $module/test/e2e
    install -m 644 "$source"/test/images/agnhost/porter/localhost.{crt,key} "$partial/"
}

build_containerd() {
    local commands=github.com/containerd/containerd/v2/cmd
    wrap containerd github.com/containerd/containerd/v2 v$CONTAINERD
    go mod tidy -e >/dev/null 2>&1 || true
    LD="-X github.com/containerd/containerd/v2/version.Version=$CONTAINERD" \
        build -tags no_btrfs,no_zfs,no_devmapper $commands/{containerd,containerd-shim-runc-v2,ctr}
}

build_coredns() {
    wrap coredns github.com/coredns/coredns v$COREDNS
    go mod tidy >/dev/null
    CGO_ENABLED=0 go build -mod=mod -buildvcs=false -ldflags "-s -w" -o "$partial/coredns" .
}

build_helm() {
    wrap helm helm.sh/helm/v3 v$HELM
    go mod tidy -e >/dev/null 2>&1 || true
    LD="-X helm.sh/helm/v3/internal/version.version=v$HELM" build helm.sh/helm/v3/cmd/helm
}

if [ ! -d "$out" ]; then
    check_go
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    if [ ! -d "$out" ]; then
        work=$(mktemp -d) partial=$out.partial
        trap 'rm -rf "$work" "$partial"' EXIT
        rm -rf "$partial"
        mkdir "$partial"
        for part in kubernetes containerd coredns helm; do
            echo "build.sh: building $part" >&2
            "build_$part"
        done
        mv "$partial" "$out"
    fi
fi
echo "$out"
