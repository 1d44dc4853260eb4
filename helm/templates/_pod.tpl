{{/* What all pods of this chart have in common. All templates take a component, with the values of its service. */}}

{{/* Pod Security "restricted", and no token: no pod uses the API server. */}}
{{- define "herald.pod" -}}
{{- $values := index .root.Values (include "herald.service" .) -}}
automountServiceAccountToken: false
{{- with include "herald.serviceAccountName" .root }}
serviceAccountName: {{ . | quote }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
# A Service named kafka would set KAFKA_PORT, and so on for any name.
enableServiceLinks: false
securityContext:
  # Without ids: the images have a numeric user, and OpenShift gives each namespace a range of its own.
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with include "herald.volumes" . }}
volumes:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The pod of a service. */}}
{{- define "herald.servicePod" -}}
{{ include "herald.pod" . }}
terminationGracePeriodSeconds: {{ include "herald.terminationGracePeriodSeconds" .root }}
{{- with include "herald.topologySpread" . }}
topologySpreadConstraints:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The metadata of a pod: a changed option that its service reads is another checksum, which restarts it. */}}
{{- define "herald.podMetadata" -}}
{{- $values := index .root.Values (include "herald.service" .) -}}
labels:
  {{- include "herald.podLabels" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $isService := has .component (include "herald.components" .root | splitList " ") }}
{{- if or $isService $values.podAnnotations }}
annotations:
  {{- if $isService }}
  checksum/options: {{ include "herald.optionsChecksum" . | quote }}
  {{- end }}
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The metadata of a Deployment. */}}
{{- define "herald.deploymentMetadata" -}}
name: {{ include "herald.name" . }}
labels:
  {{- include "herald.labels" . | nindent 2 }}
{{- with include "herald.reloadedSecrets" . }}
annotations:
  # Stakater Reloader, if it is installed, restarts the pods when one of these changes. The other Secrets are read again anyway.
  secret.reloader.stakater.com/reload: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "herald.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* The container of a service, but for its ports. Its own variables are in herald.envOf with its name. */}}
{{- define "herald.serviceContainer" -}}
{{- $values := index .root.Values (include "herald.service" .) -}}
name: {{ .component }}
image: {{ include "herald.image" . }}
imagePullPolicy: {{ $values.image.pullPolicy }}
{{ include "herald.container" .root }}
envFrom:
  - configMapRef:
      name: {{ include "herald.fullname" .root | quote }}
env:
  {{- include (printf "herald.envOf.%s" .component) . | trim | nindent 2 }}
  {{- with $values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{ include "herald.probes" .root }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
{{- with include "herald.volumeMounts" . }}
volumeMounts:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The Secrets that a component mounts, as JSON, by the name of the volume: the folder, because a single file does not follow a
changed Secret; the name of the Secret, empty for none; and its files, each with the key if that has another name. Nothing else of the
Secret is mounted. */}}
{{- define "herald.secrets" -}}
{{- if eq .component "test" }}
{{- include "herald.testSecrets" .root }}
{{- else }}
{{- $secrets := include "herald.kafkaSecrets" . | fromJson }}
{{- if has .component (list "consumer" "gateway") }}
{{- $secrets = merge $secrets (include "herald.tokenSecrets" .root | fromJson) (include "herald.tlsSecrets" .root | fromJson) }}
{{- end }}
{{- if has .component (list "gateway" "projector") }}
{{- $secrets = merge $secrets (include "herald.databaseSecrets" .root | fromJson) }}
{{- end }}
{{- toJson $secrets }}
{{- end }}
{{- end }}

{{- define "herald.volumeMounts" -}}
{{- range $name, $mount := include "herald.secrets" . | fromJson }}
{{- if $mount.secret }}
- name: {{ $name }}
  mountPath: {{ $mount.folder }}
  readOnly: true
{{- end }}
{{- end }}
{{- if ne .component "test" }}
{{- with (index .root.Values (include "herald.service" .)).extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "herald.volumes" -}}
{{- range $name, $mount := include "herald.secrets" . | fromJson }}
{{- if $mount.secret }}
- name: {{ $name }}
  secret:
    secretName: {{ $mount.secret | quote }}
    items:
      {{- range $file, $key := $mount.files }}
      - key: {{ $key | default $file | quote }}
        path: {{ $file }}
      {{- end }}
    # Whatever the user of the pod is; nobody else is in it.
    defaultMode: 0444
{{- end }}
{{- end }}
{{- if ne .component "test" }}
{{- with (index .root.Values (include "herald.service" .)).extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{/* The Secrets that a service reads only at start, separated by commas. */}}
{{- define "herald.reloadedSecrets" -}}
{{- $values := index .root.Values (include "herald.service" .) -}}
{{- $names := list -}}
{{- range include "herald.kafkaSecrets" . | fromJson }}{{ $names = append $names .secret }}{{ end -}}
{{- range concat (include (printf "herald.envOf.%s" .component) . | fromYamlArray) ($values.extraEnv | default list) -}}
{{- $names = append $names (dig "valueFrom" "secretKeyRef" "name" "" .) -}}
{{- end -}}
{{- range $values.extraVolumes }}{{ $names = append $names (dig "secret" "secretName" "" .) }}{{ end -}}
{{ $names | compact | uniq | sortAlpha | join "," }}
{{- end }}

{{/* Spreads the pods of a component over the nodes, if the values do not say otherwise; producers only if they do. */}}
{{- define "herald.topologySpread" -}}
{{- $service := include "herald.service" . -}}
{{- $selector := include "herald.selector" . -}}
{{- with (index .root.Values $service).topologySpreadConstraints -}}
{{- $own := dict "labelSelector" (dict "matchLabels" (fromYaml $selector)) -}}
{{- range . }}
- {{ ternary . (merge (deepCopy .) $own) (hasKey . "labelSelector") | toYaml | nindent 2 | trim }}
{{- end }}
{{- else -}}
{{- if ne $service "producer" -}}
# Preferred, not required: on a single node all of them start too.
- topologyKey: kubernetes.io/hostname
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- $selector | nindent 6 }}
  # Pods of the old revision do not count.
  matchLabelKeys: [pod-template-hash]
{{- end -}}
{{- end -}}
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
