{{/* What all pods of this chart have in common. */}}

{{/* Pod Security "restricted", and no token: no pod uses the API server. */}}
{{- define "herald.pod" -}}
automountServiceAccountToken: false
# A Service named kafka would set KAFKA_PORT, and so on for any name.
enableServiceLinks: false
securityContext:
  # Without ids: the images have a numeric user, and OpenShift gives each namespace a range of its own.
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "herald.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* A component's container, but for its own variables and ports. */}}
{{- define "herald.serviceContainer" -}}
{{- $values := index .root.Values (include "herald.service" .) -}}
name: {{ .component }}
image: {{ include "herald.image" . }}
imagePullPolicy: {{ $values.image.pullPolicy }}
{{ include "herald.container" .root }}
envFrom:
  - configMapRef:
      name: {{ include "herald.fullname" .root | quote }}
{{ include "herald.probes" .root }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
{{- with include "herald.volumeMounts" . }}
volumeMounts:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The Secrets that a component mounts, by volume: as folders, because a single file does not follow a changed Secret. Each has the
folder, the name of the Secret, and optionally the keys that are mounted, with their paths. */}}
{{- define "herald.secrets" -}}
{{- $secrets := include "herald.kafkaSecrets" . | fromJson }}
{{- if has .component (list "consumer" "gateway") }}
{{- $secrets = merge $secrets (include "herald.tokenSecrets" .root | fromJson) (include "herald.tlsSecrets" .root | fromJson) }}
{{- end }}
{{- if has .component (list "gateway" "projector") }}
{{- $secrets = merge $secrets (include "herald.databaseSecrets" .root | fromJson) }}
{{- end }}
{{- toJson $secrets }}
{{- end }}

{{- define "herald.volumeMounts" -}}
{{- range $name, $mount := include "herald.secrets" . | fromJson }}
{{- if index $mount 1 }}
- name: {{ $name }}
  mountPath: {{ first $mount }}
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "herald.volumes" -}}
{{- range $name, $mount := include "herald.secrets" . | fromJson }}
{{- if index $mount 1 }}
- name: {{ $name }}
  secret:
    secretName: {{ index $mount 1 | quote }}
    {{- range $key, $path := rest $mount | rest | first }}
    items:
      - key: {{ $key }}
        path: {{ $path }}
    {{- end }}
    # Whatever the user of the pod is; nobody else is in it.
    defaultMode: 0444
{{- end }}
{{- end }}
{{- end }}

{{/* Spreads the pods of a component over the nodes. */}}
{{- define "herald.topologySpread" -}}
# Preferred, not required: on a single node all of them start too.
- topologyKey: kubernetes.io/hostname
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "herald.selector" . | nindent 6 }}
  # Pods of the old revision do not count.
  matchLabelKeys: [pod-template-hash]
{{- end }}

{{/* A text as an environment variable's value, escaped: Kubernetes expands $(NAME), and turns "$$" into "$". */}}
{{- define "herald.envValue" -}}
{{ . | replace "$" "$$" | quote }}
{{- end }}

{{/* Has the service started, does it hang, should it get traffic now? */}}
{{- define "herald.probes" -}}
startupProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}
