# shellcheck shell=bash
# Talking to a Kubernetes cluster through kubectl and helm; sourced after _lib.sh by the scripts beside it.

# Every request of kubectl that does not stream ends by itself.
KUBE_TIMEOUT=${KUBE_TIMEOUT:-20s}

kube() { kubectl --request-timeout="$KUBE_TIMEOUT" "$@"; }

# Puts a program on the PATH: the installed one, else the one that `bin/cluster` has built.
need_tool() {
    has "$1" && return
    local directory
    if directory=$("$ROOT/bin/cluster" tools 2>/dev/null) && [ -x "$directory/$1" ]; then
        PATH=$PATH:$directory
        return
    fi
    end 69 "$1 is missing: install it ($2), or let \`bin/cluster build\` build one"
}

need_kubectl() { need_tool kubectl https://kubernetes.io/docs/tasks/tools; }
need_helm() { need_tool helm https://helm.sh/docs/intro/install; }

# The context that kubectl uses; empty if none.
current_context() { kubectl config current-context 2>/dev/null || true; }

# Ends unless the current context's cluster answers; sets CONTEXT and SERVER_VERSION (as 1.35).
# shellcheck disable=SC2034 # for the scripts that source this
need_cluster() {
    need_kubectl
    CONTEXT=$(current_context)
    [ -n "$CONTEXT" ] || end 69 "kubectl has no current context: \`bin/cluster up\` starts a cluster of our own; \`kubectl config use-context NAME\` chooses another"
    local answer
    answer=$(kube get --raw /version 2>&1) ||
        end 69 "the cluster of context $CONTEXT does not answer: ${answer##*$'\n'}"
    SERVER_VERSION=$(sed -n 's/.*"major": *"\([0-9]*\)".*/\1/p' <<<"$answer").$(sed -n 's/.*"minor": *"\([0-9]*\).*/\1/p' <<<"$answer")
}

# The cluster that `bin/cluster` started, if the current context is one.
own_cluster() {
    has kubectl || return 1
    local context
    context=$(current_context)
    case $context in
    mayfly-?*) echo "${context#mayfly-}" ;;
    *) return 1 ;;
    esac
}

# The one place that knows how images get into a cluster. $1: what own_cluster says; then archives.
load_images() { "$ROOT/bin/cluster" load --name "$@" >&2; }

why_not_loaded() {
    local context
    context=$(has kubectl && current_context)
    if [ -z "$context" ]; then
        echo "kubectl has no current context (\`bin/cluster up\` starts a cluster)"
    else
        echo "how to load images into context $context is not known here: push them to a registry that its nodes reach" \
            "(skopeo copy oci-archive:FILE docker://REGISTRY/NAME:TAG), then \`bin/install --image-registry REGISTRY\`"
    fi
}

# Which installation is meant; every script that asks takes --namespace and --release.
NAMESPACE=mayfly RELEASE=mayfly

# place_option ARGUMENTS...: takes such an option with its value; fails where the first argument is none.
place_option() {
    case $1 in
    -n | --namespace | --release) ;;
    *) return 1 ;;
    esac
    if [ $# -lt 2 ] || [ -z "$2" ]; then end 64 "$1 needs a value (see bin/${0##*/} --help)"; fi
    if [ "$1" = --release ]; then RELEASE=$2; else NAMESPACE=$2; fi
}

# The options by which other scripts find the same installation.
place_words() {
    local words=''
    [ "$NAMESPACE" = mayfly ] || words+=" --namespace $NAMESPACE"
    [ "$RELEASE" = mayfly ] || words+=" --release $RELEASE"
    echo "$words"
}

# Ends unless the installation is there; sets INSTANCE and SCALER (its Deployment's name).
# shellcheck disable=SC2034 # for the scripts that source this
need_installation() {
    need_cluster
    local found
    found=$(kube -n "$NAMESPACE" get deployments -l "mayfly/release=$RELEASE,app.kubernetes.io/component=scaler" \
        -o jsonpath='{range .items[*]}{.metadata.name} {.metadata.labels.app\.kubernetes\.io/instance}{"\n"}{end}' 2>&1) ||
        end 69 "namespace $NAMESPACE of context $CONTEXT cannot be read: ${found##*$'\n'}"
    read -r SCALER INSTANCE <<<"$found" || true
    [ -n "$SCALER" ] ||
        end 78 "there is no release $RELEASE in namespace $NAMESPACE of context $CONTEXT: bin/install, or --namespace and --release"
}

# The instance of a release: its scaler's label, or the label of the Secret that `bin/install` made; else the
# release's name. $1: namespace; $2: release.
instance_of() {
    local instance
    instance=$(kube -n "$1" get deployments,secrets -l "mayfly/release=$2" \
        -o jsonpath='{.items[0].metadata.labels.app\.kubernetes\.io/instance}' 2>/dev/null) || true
    echo "${instance:-$2}"
}

# seconds DURATION: 90, 90s, 5m, 1h in seconds.
seconds() {
    local number=${1%[smh]}
    [[ $number =~ ^[0-9]{1,7}$ ]] || return 1
    case $1 in
    *h) echo $((10#$number * 3600)) ;;
    *m) echo $((10#$number * 60)) ;;
    *) echo $((10#$number)) ;;
    esac
}

# A JSON string. $1: text.
json_string() {
    local text=$1
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/\\n}
    text=${text//$'\t'/\\t}
    text=${text//$'\r'/\\r}
    printf '"%s"' "$text"
}
