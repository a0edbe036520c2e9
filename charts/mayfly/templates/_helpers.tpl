{{/* Names everything. */}}
{{- define "mayfly.instance" -}}
{{- .Values.instance | default .Release.Name -}}
{{- end -}}

{{/* The Secret that holds the broker's URL. */}}
{{- define "mayfly.brokerSecret" -}}
{{- .Values.broker.existingSecret | default (printf "%s-broker" (include "mayfly.instance" .)) -}}
{{- end -}}

{{/* Labels of what Helm owns. Takes root and component. */}}
{{- define "mayfly.labels" -}}
{{ include "mayfly.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
mayfly/release: {{ .root.Release.Name }}
{{- end -}}

{{/* Labels that tell a component's pods from all others. Takes root and component. */}}
{{- define "mayfly.selectorLabels" -}}
app.kubernetes.io/name: mayfly
app.kubernetes.io/instance: {{ include "mayfly.instance" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* An image of ours. Takes root and program. */}}
{{- define "mayfly.image" -}}
{{- $image := .root.Values.image -}}
{{- $repository := get $image.repositories .program -}}
{{- if $image.registry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" $image.registry) $repository -}}
{{- end -}}
{{- printf "%s:%s" $repository ($image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}

{{- define "mayfly.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* What Pod Security's level "restricted" asks for, and no writable root. */}}
{{- define "mayfly.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- define "mayfly.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The broker's URL and the files for its TLS, as files: no secret stands in an environment or on a command line. */}}
{{- define "mayfly.brokerVolume" -}}
{{- $tls := .Values.broker.tls -}}
name: mayfly-broker
projected:
  sources:
    - secret:
        name: {{ include "mayfly.brokerSecret" . }}
        items:
          - { key: {{ .Values.broker.secretKey }}, path: broker-url }
    {{- with $tls.caSecret }}
    - secret:
        name: {{ . }}
        items:
          - { key: {{ $tls.caKey }}, path: ca.crt }
    {{- end }}
    {{- with $tls.caConfigMap }}
    - configMap:
        name: {{ . }}
        items:
          - { key: {{ $tls.caKey }}, path: ca.crt }
    {{- end }}
    {{- with $tls.certSecret }}
    - secret:
        name: {{ . }}
        items:
          - { key: tls.crt, path: tls.crt }
          - { key: tls.key, path: tls.key }
    {{- end }}
{{- end -}}
{{- define "mayfly.brokerEnv" -}}
- { name: MAYFLY_BROKER_URL_FILE, value: /run/secrets/mayfly/broker-url }
{{- with .Values.broker.tls }}
{{- if or .caSecret .caConfigMap }}
- { name: MAYFLY_BROKER_CA_FILE, value: /run/secrets/mayfly/ca.crt }
{{- end }}
{{- if .certSecret }}
- { name: MAYFLY_BROKER_CERT_FILE, value: /run/secrets/mayfly/tls.crt }
- { name: MAYFLY_BROKER_KEY_FILE, value: /run/secrets/mayfly/tls.key }
{{- end }}
{{- end }}
{{- end -}}
{{- define "mayfly.brokerMount" -}}
name: mayfly-broker
mountPath: /run/secrets/mayfly
readOnly: true
{{- end -}}

{{/* The record of done messages, whose URL is a file of a Secret as well. Context: a worker's `ledger`. */}}
{{- define "mayfly.ledgerEnv" -}}
- { name: MAYFLY_LEDGER_URL_FILE, value: /run/secrets/mayfly-ledger/ledger-url }
{{- if or .caSecret .caConfigMap }}
- { name: MAYFLY_LEDGER_CA_FILE, value: /run/secrets/mayfly-ledger/ca.crt }
{{- end }}
{{- range $setting := list "down" "keep" "lease" }}
{{- with get $ $setting }}
- { name: MAYFLY_LEDGER_{{ upper $setting }}, value: {{ . | quote }} }
{{- end }}
{{- end }}
{{- with .id_header }}
- { name: MAYFLY_ID_HEADER, value: {{ . | quote }} }
{{- end }}
{{- end -}}
{{- define "mayfly.ledgerVolume" -}}
name: mayfly-ledger
projected:
  sources:
    - secret:
        name: {{ .existingSecret }}
        items:
          - { key: {{ .secretKey | default "ledger-url" }}, path: ledger-url }
    {{- with .caSecret }}
    - secret:
        name: {{ . }}
        items:
          - { key: {{ $.caKey | default "ca.crt" }}, path: ca.crt }
    {{- end }}
    {{- with .caConfigMap }}
    - configMap:
        name: {{ . }}
        items:
          - { key: {{ $.caKey | default "ca.crt" }}, path: ca.crt }
    {{- end }}
{{- end -}}

{{/* A whole number as such (Helm reads numbers as floating point), anything else as text. */}}
{{- define "mayfly.scalar" -}}
{{- if kindIs "float64" . -}}
{{- int64 . -}}
{{- else if kindIs "string" . -}}
{{- . | quote -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* The scaler's configuration. Only what is given: defaults are the scaler's. */}}
{{- define "mayfly.config" -}}
{{- $instance := include "mayfly.instance" . -}}
instance: {{ $instance }}
check_interval: {{ .Values.check_interval }}
broker:
  url_file: /run/secrets/mayfly/broker-url
launcher:
  kubernetes:
    namespace: {{ .Release.Namespace }}
    {{- if .Values.autoscalerStatus }}
    autoscaler_status: true
    {{- end }}
{{- if not (kindIs "invalid" .Values.quota) }}
quota: {{ include "mayfly.scalar" .Values.quota }}
{{- end }}
{{- with .Values.counters }}
counters:
  {{- toYaml . | nindent 2 }}
{{- end }}
pools:
{{- range .Values.pools }}
  - name: {{ .name }}
    queues:
      - name: {{ .queue | default .name | quote }}
        {{- with .slo }}
        slo: {{ . | quote }}
        {{- end }}
{{- range $key, $value := omit . "name" "queue" "slo" "declare" "worker" }}
{{- if or (kindIs "map" $value) (kindIs "slice" $value) }}
    {{ $key }}:
      {{- toYaml $value | nindent 6 }}
{{- else }}
    {{ $key }}: {{ include "mayfly.scalar" $value }}
{{- end }}
{{- end }}
    worker:
      template: {{ .worker.template | default (printf "%s-%s" $instance .name) }}
      {{- with .worker.concurrency }}
      concurrency: {{ include "mayfly.scalar" . }}
      {{- end }}
{{- end }}
{{- end -}}

{{/* What values.schema.json cannot say. */}}
{{- define "mayfly.check" -}}
{{- $instance := include "mayfly.instance" . -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" $instance) -}}
{{- fail (printf "instance: %q is the release's name, which may hold a-z, 0-9 and - here; set instance or choose another name" $instance) -}}
{{- end -}}
{{- if and .Values.broker.url .Values.broker.existingSecret -}}
{{- fail "broker: give url or existingSecret, not both" -}}
{{- end -}}
{{- if not (or .Values.broker.url .Values.broker.existingSecret) -}}
{{- fail "broker: RabbitMQ's URL is missing; set broker.existingSecret (the name of a Secret with the key broker-url) or broker.url" -}}
{{- end -}}
{{- if and .Values.broker.tls.caSecret .Values.broker.tls.caConfigMap -}}
{{- fail "broker.tls: give caSecret or caConfigMap, not both" -}}
{{- end -}}
{{- if and (dig "prometheus" "" (.Values.counters | default dict)) (dig "management" "" (.Values.counters | default dict)) -}}
{{- fail "counters: give prometheus or management, not both" -}}
{{- end -}}
{{- $names := dict -}}
{{- $queues := dict -}}
{{- range .Values.pools -}}
{{- if hasKey $names .name -}}
{{- fail (printf "pools: %q is the name of two pools" .name) -}}
{{- end -}}
{{- $_ := set $names .name true -}}
{{- $queue := .queue | default .name -}}
{{- if hasKey $queues $queue -}}
{{- fail (printf "pools: queue %q is in two pools, %q and %q" $queue (get $queues $queue) .name) -}}
{{- end -}}
{{- $_ := set $queues $queue .name -}}
{{- $pool := .name -}}
{{- if gt (add (len $instance) (len .name)) 40 -}}
{{- fail (printf "pools: instance %q and pool %q have more than 40 characters together; Job names hold no more" $instance .name) -}}
{{- end -}}
{{- if .worker.template -}}
{{- range $key := keys (omit .worker "template" "concurrency") | sortAlpha -}}
{{- fail (printf "pools: pool %q has a worker.template, a CronJob of your own that says all about its workers: leave out worker.%s" $pool $key) -}}
{{- end -}}
{{- end -}}
{{- $handler := .worker.handler | default dict -}}
{{- if and (or $handler.exec $handler.stdio) (not .worker.image) -}}
{{- fail (printf "pools: pool %q runs a command, so it needs worker.image, an image with that command in it (README.md, \"Your image\")" .name) -}}
{{- end -}}
{{- $slo := hasKey . "slo" -}}
{{- range $key, $value := pick . "target_queue_size" "force_empty_queue_interval" "max_pending_while_scaling" "skip_futile" -}}
{{- if $slo -}}
{{- fail (printf "pools: pool %q has an slo, with which deadlines alone decide: leave out %s" $pool $key) -}}
{{- end -}}
{{- end -}}
{{- range $key, $value := pick . "start" "pods_per_node" "max_pending" -}}
{{- if not $slo -}}
{{- fail (printf "pools: %s of pool %q is for a pool with an slo: give it one" $key $pool) -}}
{{- end -}}
{{- end -}}
{{- range .worker.env -}}
{{- if has .name (list "MAYFLY_INSTANCE" "MAYFLY_POOL" "MAYFLY_SERIAL" "MAYFLY_SLOT" "MAYFLY_SERVICE_TIME_HINT" "MAYFLY_STATUS_FILE" "MAYFLY_START_DELAY" "MAYFLY_BROKER_URL_FILE" "MAYFLY_BROKER_CA_FILE" "MAYFLY_BROKER_CERT_FILE" "MAYFLY_BROKER_KEY_FILE" "MAYFLY_QUEUE" "MAYFLY_DECLARE" "MAYFLY_ADMIN_LISTEN" "MAYFLY_GRACE") -}}
{{- fail (printf "pools: %s of pool %q is set by the chart or the scaler" .name $pool) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
