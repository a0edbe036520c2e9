# shellcheck shell=bash
# How an image is made; sourced by bin/images.
#
# Without a container engine: one layer with one file. Everything is fixed (times, owners, order), so that the same program gives the
# same bytes.

# Part of every tag: raised when the same programs become other images.
IMAGE_RECIPE=1

# The architecture as images name it. $1: a target triple.
image_architecture() {
    case $1 in
    x86_64-*) echo amd64 ;;
    aarch64-*) echo arm64 ;;
    *) fail "no images for ${1%%-*}: only x86_64 and aarch64 are known" ;;
    esac
}

# The one tag of all images: what is in them, no more. $1: architecture; $2: directory of the programs.
image_tag() {
    {
        echo "$IMAGE_RECIPE $1"
        cd "$2" && sha256sum -- "${PROGRAMS[@]}"
    } | sha256sum | cut -c1-12
}

# Adds standard input to the blobs; prints its digest. $1: layout directory.
image_blob() {
    local blob digest
    blob=$(mktemp "$1/blob.XXXXXX") || return 1
    cat >"$blob" || return 1
    digest=$(sha256sum "$blob" | cut -d' ' -f1)
    chmod 644 "$blob"
    mv "$blob" "$1/blobs/sha256/$digest"
    echo "$digest"
}

image_size() { stat -c %s "$1/blobs/sha256/$2"; }

# A tar archive that depends on nothing but its content. $@: more for tar.
plain_tar() { tar --create --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=ustar "$@"; }

# Writes one image as an OCI archive. $1: program; $2: its file; $3: tag; $4: architecture; $5: version; $6: archive.
write_image() (
    program=$1 file=$2 tag=$3 architecture=$4 version=$5 archive=$6
    layout=$(mktemp -d)
    trap 'rm -rf "$layout"' EXIT
    mkdir -p "$layout/blobs/sha256" "$layout/root"
    install -m 755 "$file" "$layout/root/$program"

    difference=$(plain_tar --directory="$layout/root" "$program" | sha256sum | cut -d' ' -f1)
    layer=$(plain_tar --directory="$layout/root" "$program" | gzip -9n | image_blob "$layout")
    rm -r "$layout/root"
    config=$(
        image_blob "$layout" <<EOF
{"created":"1970-01-01T00:00:00Z","architecture":"$architecture","os":"linux","config":{"User":"65532:65532","Entrypoint":["/$program"],"WorkingDir":"/","Labels":{"org.opencontainers.image.title":"$program","org.opencontainers.image.version":"$version","org.opencontainers.image.licenses":"MIT OR Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":["sha256:$difference"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"bin/images"}]}
EOF
    )
    manifest=$(
        image_blob "$layout" <<EOF
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$(image_size "$layout" "$config")},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:$layer","size":$(image_size "$layout" "$layer")}]}
EOF
    )
    # The full name is the one that a kubelet asks its runtime for.
    printf '%s' "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:$manifest\",\"size\":$(image_size "$layout" "$manifest"),\"platform\":{\"architecture\":\"$architecture\",\"os\":\"linux\"},\"annotations\":{\"io.containerd.image.name\":\"docker.io/library/$program:$tag\",\"org.opencontainers.image.ref.name\":\"$tag\"}}]}" \
        >"$layout/index.json"
    printf '%s' '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    chmod 644 "$layout/index.json" "$layout/oci-layout"
    plain_tar --directory="$layout" --file="$archive.new" blobs index.json oci-layout
    mv "$archive.new" "$archive"
)

# The same with Docker. $1: program; $2: its file; $3: tag; $4: archive.
docker_image() (
    context=$(mktemp -d)
    trap 'rm -rf "$context"' EXIT
    cp "$2" "$context/$1"
    docker build --quiet --file "$ROOT/images/Dockerfile" --target "$1" --tag "$1:$3" "$context" >&2 &&
        docker save --output "$4.new" "$1:$3" &&
        mv "$4.new" "$4"
)
