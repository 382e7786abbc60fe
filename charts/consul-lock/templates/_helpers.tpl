{{- /* What everything is called. */}}
{{- define "consul-lock.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* What is of the whole cluster is called: releases of two namespaces do not meet. */}}
{{- define "consul-lock.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "consul-lock.fullname" .) }}
{{- end }}

{{- /* The same for kinds whose names may have no colon. */}}
{{- define "consul-lock.dottedName" -}}
{{- printf "%s.%s" (include "consul-lock.fullname" .) .Release.Namespace }}
{{- end }}

{{- define "consul-lock.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "consul-lock.labels" -}}
{{ include "consul-lock.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end }}

{{- define "consul-lock.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "consul-lock.fullname" .) }}
{{- end }}

{{- define "consul-lock.priorityClass" -}}
{{- if .Values.priorityClass.create }}
{{- .Values.priorityClass.name | default (include "consul-lock.dottedName" .) }}
{{- else }}
{{- .Values.priorityClass.name }}
{{- end }}
{{- end }}

{{- define "consul-lock.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The port of Consul's address. */}}
{{- define "consul-lock.consulPort" -}}
{{- $address := .Values.consul.address }}
{{- $host := $address | trimPrefix "https://" | trimPrefix "http://" | regexFind "^[^/]*" }}
{{- $port := $host | regexFind ":[0-9]+$" | trimPrefix ":" }}
{{- $port | default (ternary 443 80 (hasPrefix "https://" $address)) }}
{{- end }}

{{- /* What the controller and the doctor are told. */}}
{{- define "consul-lock.env" -}}
{{- if contains "$(HOST_IP)" .Values.consul.address }}
- name: HOST_IP
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}
- name: CONSUL_HTTP_ADDR
  value: {{ .Values.consul.address | quote }}
{{- if .Values.consul.tokenSecret.name }}
- name: CONSUL_HTTP_TOKEN_FILE
  value: /etc/consul-lock/token
{{- end }}
{{- with .Values.consul.login.authMethod }}
- name: CONSUL_LOGIN_AUTH_METHOD
  value: {{ . | quote }}
{{- end }}
{{- with .Values.consul.login.meta }}
{{- $meta := list }}
{{- range $name, $value := . }}
{{- $meta = append $meta (printf "%s=%s" $name $value) }}
{{- end }}
- name: CONSUL_LOGIN_META
  value: {{ join "," $meta | quote }}
{{- end }}
{{- if .Values.consul.tls.caSecret.name }}
- name: CONSUL_CACERT
  value: /etc/consul-lock/ca.crt
{{- end }}
{{- if .Values.consul.tls.clientSecret.name }}
- name: CONSUL_CLIENT_CERT
  value: /etc/consul-lock/client.crt
- name: CONSUL_CLIENT_KEY
  value: /etc/consul-lock/client.key
{{- end }}
{{- with .Values.consul.tls.serverName }}
- name: CONSUL_TLS_SERVER_NAME
  value: {{ . | quote }}
{{- end }}
{{- with .Values.consul.namespace }}
- name: CONSUL_NAMESPACE
  value: {{ . | quote }}
{{- end }}
{{- with .Values.consul.partition }}
- name: CONSUL_PARTITION
  value: {{ . | quote }}
{{- end }}
- name: CONSUL_LOCK_KEY_PREFIX
  value: {{ .Values.keyPrefix | quote }}
{{- with .Values.clusterName }}
- name: CONSUL_LOCK_CLUSTER_NAME
  value: {{ . | quote }}
{{- end }}
{{- with .Values.watchNamespaces }}
- name: CONSUL_LOCK_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
- name: CONSUL_LOCK_LEASE_NAME
  value: {{ include "consul-lock.fullname" . | quote }}
- name: CONSUL_LOCK_LEASE_NAMESPACE
  value: {{ .Release.Namespace | quote }}
- name: CONSUL_LOCK_ADMIN_ADDR
  value: {{ printf "0.0.0.0:%v" .Values.metrics.port | quote }}
- name: CONSUL_LOCK_PER_CLAIM_METRICS
  value: {{ .Values.metrics.perClaim | quote }}
- name: CONSUL_LOCK_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
- name: CONSUL_LOCK_LOG
  value: {{ .Values.log.filter | quote }}
{{- range $name, $value := .Values.extraEnv }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- /* Whether there are Secrets to mount. */}}
{{- define "consul-lock.hasSecrets" -}}
{{- with .Values.consul }}
{{- if or .tokenSecret.name .tls.caSecret.name .tls.clientSecret.name }}true{{ end }}
{{- end }}
{{- end }}

{{- /* Where a container has them. */}}
{{- define "consul-lock.mounts" -}}
{{- if include "consul-lock.hasSecrets" . }}
volumeMounts:
  - name: consul
    mountPath: /etc/consul-lock
    readOnly: true
{{- end }}
{{- end }}

{{- /* One volume, so that a certificate and its key change at one instant. */}}
{{- define "consul-lock.volumes" -}}
{{- if include "consul-lock.hasSecrets" . }}
volumes:
  - name: consul
    projected:
      defaultMode: 0440
      sources:
        {{- with .Values.consul.tokenSecret }}
        {{- if .name }}
        - secret:
            name: {{ .name }}
            items:
              - {key: {{ .key | quote }}, path: token}
        {{- end }}
        {{- end }}
        {{- with .Values.consul.tls.caSecret }}
        {{- if .name }}
        - secret:
            name: {{ .name }}
            items:
              - {key: {{ .key | quote }}, path: ca.crt}
        {{- end }}
        {{- end }}
        {{- with .Values.consul.tls.clientSecret }}
        {{- if .name }}
        - secret:
            name: {{ .name }}
            items:
              - {key: {{ .certKey | quote }}, path: client.crt}
              - {key: {{ .keyKey | quote }}, path: client.key}
        {{- end }}
        {{- end }}
{{- end }}
{{- end }}

{{- /* What of a pod has nothing to do with what runs in it. */}}
{{- define "consul-lock.pod" -}}
serviceAccountName: {{ include "consul-lock.serviceAccount" . }}
automountServiceAccountToken: true
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
dnsPolicy: {{ .Values.dns.policy }}
{{- with .Values.dns }}
{{- if or .nameservers .searches }}
dnsConfig:
  {{- with .nameservers }}
  nameservers: {{ toJson . }}
  {{- end }}
  {{- with .searches }}
  searches: {{ toJson . }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* What its container may. */}}
{{- define "consul-lock.confined" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end }}
