{{/* Labels of every object. */}}
{{- define "bulkhead.labels" -}}
app.kubernetes.io/name: bulkhead
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: bulkhead
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels that select a component's pods: (dict "component" "agent"). */}}
{{- define "bulkhead.selector" -}}
app.kubernetes.io/name: bulkhead
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "bulkhead.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The whole pod runs in the host's network, before there is another one, and reads nothing of other services. */}}
{{- define "bulkhead.pod" -}}
hostNetwork: true
dnsPolicy: Default
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Two controllers on one node would want the same port. */}}
{{- define "bulkhead.controllerAffinity" -}}
nodeAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 1
      preference:
        matchExpressions:
          - key: node-role.kubernetes.io/control-plane
            operator: Exists
podAntiAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "bulkhead.selector" (dict "component" "controller") | nindent 10 }}
{{- end }}

{{/* Where the API server is, if not at the service. */}}
{{- define "bulkhead.apiServerEnv" -}}
{{- if .Values.apiServer.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.apiServer.host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.apiServer.port | quote }}
{{- end }}
{{- end }}

{{- define "bulkhead.nodeEnv" -}}
- name: BULKHEAD_NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: BULKHEAD_NODE_IP
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}

{{/* Secret with the certificates for etcd of a "who": controller or agent. Empty for none. */}}
{{- define "bulkhead.etcdTlsSecret" -}}
{{- if eq .root.Values.etcd.mode "bundled" -}}
bulkhead-etcd-client
{{- else if and (eq .who "agent") .root.Values.etcd.external.agentTlsSecret -}}
{{ .root.Values.etcd.external.agentTlsSecret }}
{{- else -}}
{{ .root.Values.etcd.external.tlsSecret }}
{{- end -}}
{{- end }}

{{/* Secret with the login for etcd of a "who". Empty for none. */}}
{{- define "bulkhead.etcdAuthSecret" -}}
{{- if eq .root.Values.etcd.mode "external" -}}
{{- if and (eq .who "agent") .root.Values.etcd.external.agentAuthSecret -}}
{{ .root.Values.etcd.external.agentAuthSecret }}
{{- else -}}
{{ .root.Values.etcd.external.authSecret }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* How a "who" reaches etcd. */}}
{{- define "bulkhead.etcdEnv" -}}
- name: BULKHEAD_ETCD_ENDPOINTS
{{- if eq .root.Values.etcd.mode "bundled" }}
  valueFrom:
    configMapKeyRef:
      name: bulkhead-etcd
      key: endpoints
{{- else }}
  value: {{ join "," .root.Values.etcd.external.endpoints | quote }}
{{- end }}
- name: BULKHEAD_ETCD_PREFIX
  value: {{ .root.Values.etcd.prefix | quote }}
{{- if include "bulkhead.etcdTlsSecret" . }}
- name: BULKHEAD_ETCD_CA
  value: /etc/bulkhead/etcd-tls/ca.crt
- name: BULKHEAD_ETCD_CERT
  value: /etc/bulkhead/etcd-tls/tls.crt
- name: BULKHEAD_ETCD_KEY
  value: /etc/bulkhead/etcd-tls/tls.key
{{- end }}
{{- with include "bulkhead.etcdAuthSecret" . }}
- name: BULKHEAD_ETCD_USER
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: username
- name: BULKHEAD_ETCD_PASSWORD_FILE
  value: /etc/bulkhead/etcd-auth/password
{{- end }}
{{- end }}

{{- define "bulkhead.etcdMounts" -}}
{{- if include "bulkhead.etcdTlsSecret" . }}
- name: etcd-tls
  mountPath: /etc/bulkhead/etcd-tls
  readOnly: true
{{- end }}
{{- if include "bulkhead.etcdAuthSecret" . }}
- name: etcd-auth
  mountPath: /etc/bulkhead/etcd-auth
  readOnly: true
{{- end }}
{{- end }}

{{- define "bulkhead.etcdVolumes" -}}
{{- with include "bulkhead.etcdTlsSecret" . }}
- name: etcd-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with include "bulkhead.etcdAuthSecret" . }}
- name: etcd-auth
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: password
        path: password
{{- end }}
{{- end }}

{{/* An HTTP check of a pod in the host's network: (dict "path" "/healthz" "port" 9470 "listen" "loopback"). The kubelet asks from the host's network, so the loopback is the pod's own. */}}
{{- define "bulkhead.httpGet" -}}
httpGet:
  {{- if eq .listen "loopback" }}
  host: 127.0.0.1
  {{- end }}
  path: {{ .path }}
  port: {{ .port }}
{{- end }}

{{- define "bulkhead.listen" -}}
{{- if eq .listen "loopback" -}}127.0.0.1{{- else -}}$(BULKHEAD_NODE_IP){{- end -}}:{{ .port }}
{{- end }}

{{/* Users whom no policy concerns, as a CEL list. The controllers of the control plane have service accounts of their own, or this one user. */}}
{{- define "bulkhead.exemptUsers" -}}
{{- $users := list "system:kube-controller-manager" -}}
{{- range .Values.policies.exemptUsers }}{{ $users = append $users . }}{{ end -}}
[{{ range $i, $user := $users }}{{ if $i }}, {{ end }}'{{ $user }}'{{ end }}]
{{- end }}

{{/* The pod that sets the bundled etcd up. */}}
{{- define "bulkhead.etcdSetupPod" -}}
{{- $b := .Values.etcd.bundled -}}
metadata:
  labels:
    {{- include "bulkhead.labels" . | nindent 4 }}
    app.kubernetes.io/component: etcd-setup
spec:
  {{- include "bulkhead.pod" . | nindent 2 }}
  serviceAccountName: bulkhead-etcd-setup
  priorityClassName: system-cluster-critical
  restartPolicy: OnFailure
  {{- with $b.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  nodeSelector:
    kubernetes.io/os: linux
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: setup
      image: {{ include "bulkhead.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [/usr/bin/bulkhead]
      args:
        - etcd
        - setup
        - --namespace={{ .Release.Namespace }}
        - --members={{ if eq (int $b.members) 0 }}auto{{ else }}{{ $b.members }}{{ end }}
        {{- $pairs := list }}
        {{- range $key, $value := $b.nodeSelector }}{{ $pairs = append $pairs (printf "%s=%s" $key $value) }}{{ end }}
        - --node-selector={{ join "," $pairs }}
        - --client-port={{ $b.clientPort }}
        - --peer-port={{ $b.peerPort }}
        - --days={{ $b.certificateDays }}
      {{- with include "bulkhead.apiServerEnv" . | trim }}
      env:
        {{- . | nindent 8 }}
      {{- end }}
      resources:
        requests:
          cpu: 10m
          memory: 16Mi
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
{{- end }}

{{/* CEL variables of both policies on services: the addresses whose traffic the service would catch. A load balancer of ipMode Proxy catches nothing on the nodes. */}}
{{- define "bulkhead.serviceVariables" -}}
- name: addresses
  expression: >-
    object.spec.?externalIPs.orValue([])
    + (object.spec.?loadBalancerIP.orValue('') == '' ? [] : [object.spec.loadBalancerIP])
    + object.?status.loadBalancer.ingress.orValue([])
    .filter(i, i.?ipMode.orValue('VIP') != 'Proxy' && i.?ip.orValue('') != '').map(i, i.ip)
{{- end }}

{{/* Refuses what a cluster that runs cannot follow, by what its controllers are configured with. Nothing where there is no API server to ask, as in `helm template`, and where the controllers' Deployment was deleted first. */}}
{{- define "bulkhead.refuseWhatCannotChange" -}}
{{- $running := lookup "apps/v1" "Deployment" .Release.Namespace "bulkhead-controller" -}}
{{- with dig "spec" "template" "spec" "containers" (list) $running -}}
{{- $container := index . 0 -}}
{{- $now := dict -}}
{{- range $container.args -}}
{{- $pair := splitn "=" 2 . -}}
{{- $_ := set $now $pair._0 (default "" $pair._1) -}}
{{- end -}}
{{- $wanted := dict "name" (list "cluster-name" $.Values.cluster.name) "network" (list "network" $.Values.cluster.network) "hostSubnetLength" (list "host-subnet-length" $.Values.cluster.hostSubnetLength) -}}
{{- range $value, $flag := $wanted -}}
{{- $was := get $now (printf "--%s" (index $flag 0)) -}}
{{- if and $was (ne $was (toString (index $flag 1))) -}}
{{- fail (printf "cluster.%s is %s in the cluster that runs, and cannot become %v: nodes hold subnets of it. Put it back (--reset-then-reuse-values keeps values); for another one uninstall and install anew: docs/install.md, Upgrade" $value $was (index $flag 1)) -}}
{{- end -}}
{{- end -}}
{{- range $container.env -}}
{{- $mode := "" -}}
{{- if eq .name "BULKHEAD_ETCD_ENDPOINTS" -}}
{{- $mode = ternary "external" "bundled" (hasKey . "value") -}}
{{- end -}}
{{- if and $mode (ne $mode $.Values.etcd.mode) -}}
{{- fail (printf "etcd.mode is %s in the cluster that runs: %s would begin with an etcd that has none of its keys. Put it back (--reset-then-reuse-values keeps values); to move to another etcd: docs/install.md, Upgrade" $mode $.Values.etcd.mode) -}}
{{- end -}}
{{- if and (eq .name "BULKHEAD_ETCD_PREFIX") (ne .value $.Values.etcd.prefix) -}}
{{- fail (printf "etcd.prefix is %s in the cluster that runs: below %s there is none of its keys. Put it back (--reset-then-reuse-values keeps values); to move: docs/install.md, Upgrade" .value $.Values.etcd.prefix) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
