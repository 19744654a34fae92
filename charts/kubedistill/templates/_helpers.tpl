{{/* Names, labels and images that several templates need. */}}

{{- define "kubedistill.name" -}}
{{- if contains "kubedistill" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-kubedistill" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Also the label by which jobs' pods find the operator in their NetworkPolicy. */}}
{{- define "kubedistill.selector" -}}
app.kubernetes.io/name: kubedistill
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Takes {root, component}. */}}
{{- define "kubedistill.labels" -}}
app.kubernetes.io/name: {{ ternary "kubedistill" (printf "kubedistill-%s" .component) (eq .component "operator") }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: kubedistill
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "kubedistill.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "kubedistill.name" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* Takes {root, image}: an entry of `images`. */}}
{{- define "kubedistill.image" -}}
{{- $path := printf "%s/%s" .root.Values.images.registry .image.name -}}
{{- if .image.digest }}{{ printf "%s@%s" $path .image.digest }}{{ else }}{{ printf "%s:%s" $path (default .root.Chart.AppVersion .root.Values.images.tag) }}{{ end }}
{{- end }}

{{- define "kubedistill.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "kubedistill.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "kubedistill.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What the operator may do with what lies in a namespace: exactly what kd_operator asks for. */}}
{{- define "kubedistill.namespacedRules" -}}
- apiGroups: [kubedistill.io]
  resources: [distillationjobs]
  verbs: [get, list, watch, delete]
- apiGroups: [kubedistill.io]
  resources: [distillationjobs/status]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [create, get, list, watch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [create, get, list, watch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [create, get, list, delete]
# Those of a job are read by their names: it sees no others.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create, get, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create, get, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
# It makes the key of a job's teacher, and reads no Secret.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [events]
  verbs: [create, get, update]
# For the labels that a runtime's `allowed.namespaces` selects by.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
{{- end }}

{{/* What lies in no namespace. */}}
{{- define "kubedistill.clusterRules" -}}
- apiGroups: [kubedistill.io]
  resources: [clusterdistillationruntimes]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [nodes]
  verbs: [get]
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
{{- end }}
