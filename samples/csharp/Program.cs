// Signs in with Entra, gets an ACS access token from the broker, and keeps it fresh.
//
//   BROKER_URL=https://... BROKER_CLIENT_ID=... CLIENT_ID=... dotnet run

using System.Net;
using System.Net.Http.Headers;
using System.Net.Http.Json;
using Azure.Communication;
using Microsoft.Identity.Client;

static string Setting(string name) =>
    Environment.GetEnvironmentVariable(name) ?? throw new InvalidOperationException($"{name} is not set.");

var app = PublicClientApplicationBuilder
    .Create(Setting("CLIENT_ID"))
    .WithAuthority("https://login.microsoftonline.com/organizations")
    .WithRedirectUri("http://localhost")
    .WithClientCapabilities(["cp1"]) // Tells Entra and APIs that this app can handle claims challenges.
    .Build();
using var http = new HttpClient { Timeout = TimeSpan.FromSeconds(10) };
var broker = new Broker(http, Setting("BROKER_URL"), app, $"api://{Setting("BROKER_CLIENT_ID")}/access_as_user");

try
{
    var options = new CommunicationTokenRefreshOptions(
        refreshProactively: true,
        // The refresh in the background calls this one, and swallows what it throws.
        tokenRefresher: cancel => broker.GetTokenAsync(cancel).GetAwaiter().GetResult())
    {
        AsyncTokenRefresher = cancel => new ValueTask<string>(broker.GetTokenAsync(cancel)),
        InitialToken = await broker.GetTokenAsync(CancellationToken.None),
    };
    using var credential = new CommunicationTokenCredential(options);
    var token = await credential.GetTokenAsync();
    Console.WriteLine($"An ACS token, good until {token.ExpiresOn.ToLocalTime():t}.");
    return 0;
}
catch (Exception error) when (error is BrokerException or MsalException)
{
    Console.Error.WriteLine($"No token: {error.Message}");
    return 1;
}

/// <summary>What the broker says in an RFC 9457 problem.</summary>
internal sealed record Problem(string? Detail, string? Code, string? TraceId, string? Claims);

/// <summary>What the broker answers with a token.</summary>
internal sealed record Issued(string Token, DateTimeOffset ExpiresOn);

/// <summary>The broker's refusal; the message is for people.</summary>
internal sealed class BrokerException(HttpStatusCode status, Problem? problem, TimeSpan? retryAfter)
    : Exception($"{problem?.Detail ?? "The service cannot be reached."} ({(int)status} {problem?.Code}, trace id {problem?.TraceId})")
{
    public string? Claims => problem?.Claims;

    public TimeSpan RetryAfter => retryAfter ?? TimeSpan.Zero;

    // A 502 only from the host: the broker's own would stay the same.
    public bool MayPass => (int)status is 429 or 503 or 504 || ((int)status == 502 && problem?.Code is null);
}

/// <summary>Gets ACS tokens for the person who signs in.</summary>
internal sealed class Broker(HttpClient http, string url, IPublicClientApplication app, string scope)
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(45);

    public async Task<string> GetTokenAsync(CancellationToken cancel)
    {
        var entraToken = await GetEntraTokenAsync(claims: null, cancel);
        var giveUp = DateTimeOffset.UtcNow + Patience;
        var pause = TimeSpan.FromSeconds(0.25);
        var challenged = false;
        while (true)
        {
            try
            {
                return (await AskAsync(entraToken, cancel)).Token;
            }
            catch (BrokerException refusal) when (refusal.Claims is not null && !challenged)
            {
                // Without the claims, MSAL would return the same token from its cache.
                entraToken = await GetEntraTokenAsync(refusal.Claims, cancel);
                challenged = true;
            }
            catch (BrokerException refusal) when (refusal.MayPass)
            {
                var wait = pause * 2 > refusal.RetryAfter ? pause * 2 : refusal.RetryAfter;
                pause = wait * (1 + Random.Shared.NextDouble() / 2);
                if (DateTimeOffset.UtcNow + pause > giveUp)
                {
                    throw;
                }
                await Task.Delay(pause, cancel);
            }
        }
    }

    private async Task<Issued> AskAsync(string entraToken, CancellationToken cancel)
    {
        using var request = new HttpRequestMessage(HttpMethod.Get, $"{url}/api/token");
        request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", entraToken);
        using var answer = await SendAsync(request, cancel);
        if (answer.IsSuccessStatusCode)
        {
            return (await answer.Content.ReadFromJsonAsync<Issued>(cancel))!;
        }
        // The host's own errors are not JSON.
        var isJson = answer.Content.Headers.ContentType?.MediaType?.EndsWith("json") ?? false;
        var problem = isJson ? await answer.Content.ReadFromJsonAsync<Problem>(cancel) : null;
        throw new BrokerException(answer.StatusCode, problem, answer.Headers.RetryAfter?.Delta);
    }

    private async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancel)
    {
        try
        {
            return await http.SendAsync(request, cancel);
        }
        catch (Exception error) when (error is HttpRequestException
            || (error is TaskCanceledException && !cancel.IsCancellationRequested))
        {
            throw new BrokerException(HttpStatusCode.ServiceUnavailable, null, null); // No answer at all.
        }
    }

    private async Task<string> GetEntraTokenAsync(string? claims, CancellationToken cancel)
    {
        string[] scopes = [scope];
        var account = (await app.GetAccountsAsync()).FirstOrDefault();
        try
        {
            var silently = app.AcquireTokenSilent(scopes, account).WithClaims(claims);
            return (await silently.ExecuteAsync(cancel)).AccessToken;
        }
        catch (MsalUiRequiredException) // No account yet, or Entra wants more than the last sign-in.
        {
            var interactively = app.AcquireTokenInteractive(scopes).WithAccount(account).WithClaims(claims);
            return (await interactively.ExecuteAsync(cancel)).AccessToken;
        }
    }
}
