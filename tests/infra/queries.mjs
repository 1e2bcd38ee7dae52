// Parses KQL with Microsoft's own parser. It reads {"name": "query", ...} as JSON from stdin, and
// writes {"name": {"problems": ["..."], "columns": ["..."]}, ...}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
require("@kusto/language-service-next/bridge.min.js");
require("@kusto/language-service-next/Kusto.Language.Bridge.min.js");
const { GlobalState, KustoCode, Symbols } = globalThis.Kusto.Language;

// The tables and columns that queries may use, as Azure Monitor documents them.
// https://learn.microsoft.com/azure/azure-monitor/reference/tables-index
const TABLES = {
  AppTraces: "(TimeGenerated:datetime, AppRoleName:string, Message:string, OperationId:string, _ResourceId:string)",
  AppRequests:
    "(TimeGenerated:datetime, AppRoleName:string, Name:string, ResultCode:string, Success:bool, DurationMs:real, ItemCount:int, OperationId:string, _ResourceId:string)",
  ACSAuthIncomingOperations:
    "(TimeGenerated:datetime, OperationName:string, OperationVersion:string, ResultType:string, ResultSignature:string, DurationMs:int, Identity:string, URI:string, CorrelationId:string, _ResourceId:string)",
  AppAvailabilityResults: "(TimeGenerated:datetime, Name:string, Success:bool, Location:string, DurationMs:real)",
  StorageTableLogs:
    "(TimeGenerated:datetime, AccountName:string, OperationName:string, StatusText:string, Uri:string, CallerIpAddress:string, RequesterObjectId:string, RequesterUpn:string)",
  StorageBlobLogs:
    "(TimeGenerated:datetime, AccountName:string, Category:string, OperationName:string, StatusCode:string, StatusText:string, Uri:string, CallerIpAddress:string, RequesterObjectId:string, RequesterUpn:string)",
  Usage: "(TimeGenerated:datetime, DataType:string, IsBillable:bool, Quantity:real, QuantityUnit:string)",
  _LogOperation: "(TimeGenerated:datetime, Category:string, Operation:string, Detail:string, Level:string)",
};

const tables = Object.entries(TABLES).map(([name, columns]) => Symbols.TableSymbol.From(columns).WithName(name));
const workspace = GlobalState.Default.WithDatabase(new Symbols.DatabaseSymbol.ctor("workspace", tables, false));

function list(items) {
  return Array.from({ length: items.Count }, (_, position) => items.getItem(position));
}

function parse(query) {
  const code = KustoCode.ParseAndAnalyze(query, workspace);
  const problems = list(code.GetDiagnostics()).map(
    (found) => `${found.Severity} ${found.Code} at ${found.Start}: ${found.Message}`,
  );
  return { problems, columns: code.ResultType ? list(code.ResultType.Columns).map((column) => column.Name) : [] };
}

const queries = Object.entries(JSON.parse(readFileSync(0, "utf8")));
process.stdout.write(JSON.stringify(Object.fromEntries(queries.map(([name, query]) => [name, parse(query)]))));
